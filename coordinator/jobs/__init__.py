"""Jobs as authors write them: the job file, its checks, and what it names."""
