"""What is read off the intact model: where its heads look, what they are like, what each writes for the answer."""
