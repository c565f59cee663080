"""What locked towers make of clips and texts: made once, kept, and read instead of them."""
