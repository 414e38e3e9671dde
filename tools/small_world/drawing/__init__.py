"""Render a scene as an image: shapes as signed distances, their colors, and the styles."""
