"""What trains: one loop, losses, data, and the methods made of them. Knows no ComfyUI."""
