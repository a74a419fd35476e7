"""Everything that runs with CAP_SYS_MODULE, and the protocol that it is spoken to with."""
