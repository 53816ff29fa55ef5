"""Object detection: a Faster R-CNN student of a Faster R-CNN, on data in COCO's layout."""
