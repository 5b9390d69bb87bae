"""What every feature stands on: settings, engines, errors, identity, time. Knows no feature."""
