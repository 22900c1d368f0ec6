"""What the scripts here begin with: the project on the path, and their arguments."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def arguments(doc: str, *options: tuple[str, dict]) -> argparse.Namespace:
    """Parse the script's own (name, options) arguments; --help shows its doc's first line."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, settings in options:
        parser.add_argument(name, **settings)
    return parser.parse_args()
