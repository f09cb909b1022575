"The same command as `python -m vidrepro`."

from vidrepro.cli.main import main

main()
