"""What a run is on disk, written and read whole, without torch."""
