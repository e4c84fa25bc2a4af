"""After training: an agent learns in one ordinary environment, or becomes a file that needs no metarl."""
