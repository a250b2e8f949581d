"""The dashboard, without HTTP: its built pages, its sessions, its live numbers."""
