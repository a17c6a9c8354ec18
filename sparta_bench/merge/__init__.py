"""What can be made of trained things: plain folders, other layouts, several tasks in one model."""
