"""Adapter files: the native format, the formats of other trainers, and safetensors."""
