"""What is copied into a student's pipeline folder: code that needs torch and diffusers, and nothing of Stillroom."""
