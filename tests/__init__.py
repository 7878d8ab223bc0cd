"""Tests of Paceline, room by room."""
