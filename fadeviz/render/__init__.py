"""Drawing: pictures and animations of a run, from its files alone; numpy and Pillow, never torch."""
