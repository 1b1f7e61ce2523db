"""What a power cut of the host may leave of a source: a recorder beneath it, and each cut of its recording."""
