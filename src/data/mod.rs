//! CIFAR binary files, generated images, download, splits and the order of an epoch.
