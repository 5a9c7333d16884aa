"""Independent pieces of work: done here or by any executor, kept on disk as they are finished."""
