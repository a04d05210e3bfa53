"""Functions generated as LLVM for one pattern at a time, each beside the Python twin that says what it does."""
