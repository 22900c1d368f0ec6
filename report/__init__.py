"""The evaluation on held-out prompts: its rows, rivals and prices, and the page that shows them."""
