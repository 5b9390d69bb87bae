"""Clocktower: a booking backend for scarce, free, public places."""
