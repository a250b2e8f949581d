"""Dashboard and customer page, without HTTP: built pages, plain form, sessions, live numbers."""
