"""The views of an image: crops, flips, rotations and strong augmentation."""
