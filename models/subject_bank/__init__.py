"""Banks of subjects: many trained adapters of one layout with their training images, for the hypernetwork."""
