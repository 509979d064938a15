"""What the systems of data-set distillation share."""
