"""What a finished run leaves for use elsewhere: ONNX, torch.export, the libraries' own folders, a folder for a hub."""
