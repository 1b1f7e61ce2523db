"""How the processes of one side find and talk to each other. Imports common only; knows nothing of USB or disks."""
