from vidrepro.cli.main import main

main()
