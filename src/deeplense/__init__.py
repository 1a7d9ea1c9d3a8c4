"""deeplense."""
