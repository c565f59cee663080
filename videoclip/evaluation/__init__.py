"""Model and clips -> scores and ranks, for retrieval and recognition."""
