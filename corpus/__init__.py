"""Bills and their hidden judge, published formats, columns of token ids."""
