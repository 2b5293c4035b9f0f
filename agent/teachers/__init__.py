"""Teachers: language models that write and review rows, behind one small protocol."""
