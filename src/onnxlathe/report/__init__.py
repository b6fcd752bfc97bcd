"""What people and programs are told: tables for the terminal, JSON for scripts, graphs as text."""
