"""Published policies, each as its paper describes it, to compare with and to choose by name."""
