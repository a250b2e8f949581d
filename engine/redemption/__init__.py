"""Operations on codes, the core that runs them, and flows over several codes."""
