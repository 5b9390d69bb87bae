"""Where things happen: the town's units, its service stations and their service points."""
