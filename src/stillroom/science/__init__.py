"""Systems of science: force fields, molecules, jump processes, reservoirs, radiance fields, magic states."""
