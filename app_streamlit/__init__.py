"""The app people use: asking, reading answers, following citations. Reads the knowledge base and changes nothing in it."""
