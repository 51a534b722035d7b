/* What the library shows to the outside; everything else is hidden. */
#ifndef ARCOMPILE_EXPORT_H
#define ARCOMPILE_EXPORT_H

#define ARC_API __attribute__((visibility("default")))

#endif
