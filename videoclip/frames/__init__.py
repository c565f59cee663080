"""File -> Frames: decode, choose frames, cut and change them, keep them, and name bad files."""
