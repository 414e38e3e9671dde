"""Run a shipped workflow on a real headless ComfyUI and measure the result."""
