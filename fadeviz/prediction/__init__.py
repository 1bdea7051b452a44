"""What trained networks make of images, and of each other."""
