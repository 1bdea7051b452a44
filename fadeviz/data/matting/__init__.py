"""Matting: images with an alpha matte and a trimap, composited or from files."""
