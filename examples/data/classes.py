"""The numbers of classes in the label files of data sets."""

#: Of Cityscapes, in the order of the benchmark's train ids: road, sidewalk, building, wall, fence, pole,
#: traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle,
#: bicycle.
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

#: Of COCO-Stuff: things up to 91, then stuff.
COCO_STUFF_NUMBERS = range(1, 183)
#: Numbers of things that COCO has no annotations of.
COCO_STUFF_MISSING = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
