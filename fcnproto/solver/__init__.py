"""Training as Caffe trains: solvers, learning-rate policies, snapshots, and the loop around them."""
