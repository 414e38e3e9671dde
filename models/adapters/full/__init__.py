"""Full fine-tuning: a dense update of each weight."""
