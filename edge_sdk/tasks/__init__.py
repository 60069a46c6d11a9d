"""From a frame to a tensor and from tensors to a result, by task."""
