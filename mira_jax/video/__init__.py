"""Video files and frames to RGB arrays, and back."""
