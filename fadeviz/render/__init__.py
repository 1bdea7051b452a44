"""Drawing: figures and animations of stored runs, from their files only; numpy, Pillow and matplotlib, never torch."""
