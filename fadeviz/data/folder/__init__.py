"""A folder of anybody's images and masks: which belong together, what stands for the classes, and what is wrong."""
