"""What became of a claim after it was decided: looking it up, and giving it back, hand to hand where somebody waits."""
